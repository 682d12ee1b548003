"""``sinkscope models`` and ``sinkscope cache``: which models there are, and which were converted."""

from __future__ import annotations

from sinkscope.cli.options import ModelOptions, load

_KINDS = {
    "decoder": "decoders",
    "hybrid": "decoders with other blocks than attention",
    "encoder": "encoders",
    "vision": "vision encoders",
    "dual": "image-text encoders",
    "vlm": "vision-language models",
    "encoder-decoder": "encoder-decoders",
    "bypass": "through TransformerLens",
}


def models(model: str | None = None, *, verify: bool = False, loading: ModelOptions | None = None) -> None:
    """List the named models and the supported architectures, or say what can be read from one model.

    Args:
        model: A named model, a local folder, a GGUF file, ollama:NAME, or a hub id. Left out: the lists.
        verify: Also compare with the model's own eager attention, on up to 512 tokens.
    """
    from sinkscope.models.sources import SOURCES, sources

    if model is not None:
        handle = load(model, loading or ModelOptions())
        print(handle.capabilities(verify=verify))
        if handle.origin:
            print(f"origin: {handle.origin}")
        if model in SOURCES:
            print("; ".join(filter(None, [f"licence: {SOURCES[model].licence}", SOURCES[model].terms()])))
        return
    from sinkscope import testing

    print("Named models (sinkscope run NAME, load_model(NAME)):\n")
    rows = [("name", "kind", "parameters", "here", "licence")]
    missing = []
    for source in sources():
        here = source.here()
        rows.append((source.name, source.kind, _count(source.parameters), "yes" if here else "no", source.licence))
        if not here:
            missing.append(f"  {source.name:<14} {source.install()}")
    print(_table(rows))
    if missing:
        print("\nTo get those that are not here:\n" + "\n".join(missing))
    for terms in filter(None, (source.terms() for source in sources())):
        print(f"\n{terms[:1].upper()}{terms[1:]}")
    print("\nArchitectures that the test suite measures against a dense reference:")
    for kind, name in _KINDS.items():
        print(f"  {name}: {', '.join(testing.names(kind))}")
    print("\nOthers that use the library's attention interface work without being named: sinkscope models FOLDER")


def cache(*, clear: bool = False) -> None:
    """List the models that were converted (GGUF, ONNX) and are kept for the next load, or remove them.

    Args:
        clear: Remove them all. They are converted again when they are next loaded.
    """
    from sinkscope.models.sources import cache as store

    if clear:
        print(f"Freed {store.megabytes(store.clear())} in {store.root()}.")
        return
    found = store.entries()
    rows = [(store.megabytes(entry.bytes), entry.facts.get("file", ""), entry.origin) for entry in found]
    print(f"{store.root()} ({store.VARIABLE} puts it elsewhere):")
    print(_table(rows) if rows else "  nothing")


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters >= 100_000 else f"{parameters:,}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
