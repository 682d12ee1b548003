"""What the ledger tries: the model types that auto classes of text, image and audio know, one class each."""

import zlib
from dataclasses import dataclass
from functools import cache

import transformers
from transformers.models.auto import modeling_auto

MAPPINGS = {
    "image-text": "IMAGE_TEXT_TO_TEXT", "sequence to sequence": "SEQ_TO_SEQ_CAUSAL_LM",
    "speech to text": "SPEECH_SEQ_2_SEQ", "masked text": "MASKED_LM", "text": "CAUSAL_LM",
    "multimodal": "MULTIMODAL_LM",
    "speech (CTC)": "CTC",
    "image and text": "ZERO_SHOT_IMAGE_CLASSIFICATION", "retrieval": "RETRIEVAL", "text encoder": "TEXT_ENCODING",
    "image": "IMAGE", "base": "",
}  # fmt: skip
"""Auto classes by their name here, the most telling first: a model type counts once, under the first that has it."""


@dataclass(frozen=True)
class Entry:
    """One model type, the class that is tried, and the auto class that it was found in."""

    model_type: str
    cls: str
    group: str

    @property
    def share(self):
        """A number from 0 to 99 that stays with the name: what a part of the ledger is chosen by."""
        return zlib.crc32(self.model_type.encode()) % 100


def entry(model_type):
    """One entry, without asking the library for the classes of all others."""
    for group, name in MAPPINGS.items():
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES")
        if model_type in mapping:
            cls = mapping[model_type]
            return Entry(model_type, cls if isinstance(cls, str) else cls[0], group)
    raise KeyError(model_type)


@cache
def entries():
    """Every entry by model type, sorted."""
    found = {}
    for group, name in MAPPINGS.items():
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES")
        for model_type, cls in mapping.items():
            cls = cls if isinstance(cls, str) else cls[0]
            if model_type not in found and hasattr(transformers, cls):
                found[model_type] = Entry(model_type, cls, group)
    return dict(sorted(found.items()))
