"""``Prompts``: the constructors, each on the builder of its kind, and batches of any prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sinkscope.arguments import shown
from sinkscope.errors import PromptError
from sinkscope.prompts.batch import collate
from sinkscope.prompts.chat import fields_of_chat
from sinkscope.prompts.crops import fields_of_crops
from sinkscope.prompts.crossing import CountKeys, fields_of_crossing
from sinkscope.prompts.data import Batch, PromptFields
from sinkscope.prompts.images import fields_of_images
from sinkscope.prompts.inputs import fields_of_inputs
from sinkscope.prompts.model import PromptModel, check_model
from sinkscope.prompts.pairs import fields_of_pairs, fields_of_side
from sinkscope.prompts.text import fields_of_ids, fields_of_texts
from sinkscope.prompts.tiles import fields_of_tiles, takes_tiles
from sinkscope.prompts.towers import fields_of_packed_images, fields_of_tower, takes_grid


@dataclass(frozen=True, eq=False, repr=False)
class Prompts(PromptFields):
    """Prompts of one model: ids, roles and strings of the real tokens, further inputs, patch grids.

    Build them with one of the constructors; the fields are those of ``PromptFields``.
    """

    @classmethod
    def from_texts(cls, texts: Sequence[str], model: PromptModel, add_bos: bool | Literal["auto"] = "auto") -> Prompts:
        """Tokenise ``texts`` with the tokenizer of ``model``.

        Args:
            texts: one string per prompt.
            model: a ``sinkscope.models.handle.Model`` of a text or vision-language model.
            add_bos: ``"auto"`` keeps what the tokenizer adds and adds nothing; ``True`` makes sure that a BOS (or CLS)
                comes first; ``False`` leaves it out.

        Raises:
            PromptError: no tokenizer, an empty list or text, a text beyond the context length, a wrong ``add_bos``.
        """
        check_model(model, "from_texts")
        return cls(**vars(fields_of_texts(texts, model, add_bos)))

    @classmethod
    def from_ids(cls, ids: Sequence[Sequence[int]], model: PromptModel) -> Prompts:
        """Take token ids as they are, one list per prompt, without padding; nothing is added.

        Raises:
            PromptError: an empty list or prompt, an id outside the vocabulary, a prompt beyond the context length.
        """
        check_model(model, "from_ids")
        return cls(**vars(fields_of_ids(ids, model)))

    @classmethod
    def from_images(cls, images: Sequence[Any], model: PromptModel) -> Prompts:
        """Take images for a vision encoder: class token, registers, then patches in rows.

        Args:
            images: paths, PIL images, uint8 arrays (height, width, 3), or float tensors (channel, height, width) that
                are normalised already. Transparency is laid on white.
            model: a ``sinkscope.models.handle.Model`` of a vision encoder.

        Raises:
            PromptError: not a vision encoder, no image processor, a broken, animated or floating-point image, or a
                size that the encoder refuses.
        """
        check_model(model, "from_images")
        packed = model.kind == "vision" and takes_grid(model.model)
        return cls(**vars(fields_of_packed_images(images, model) if packed else fields_of_images(images, model)))

    @classmethod
    def from_chat(cls, items: Sequence[Mapping[str, Any]], model: PromptModel) -> Prompts:
        """Ask questions about images, each written with the model's chat template.

        Words of the question have the role ``text``, those of a system message ``system``, image placeholders
        ``image``, and everything that the template adds ``special``.

        An ``answer`` is written after the template's opening of the model's turn, tokenised where it stands, without an
        end of turn; its tokens have the role ``answer``. The loss of a caption is ``TokenLoss`` at the queries whose
        next token is one: ``reading.token_loss.where(reading.token_role.shift(key=-1).values == "answer")``.

        Args:
            items: mappings with ``text``, and if wanted ``image`` (path, PIL image, or a list of them), ``system`` and
                ``answer``.
            model: a ``sinkscope.models.handle.Model`` of a vision-language model with its processor.

        Raises:
            PromptError: not such a model, no processor, a malformed item, a broken image, placeholders in the text, or
                an answer that the tokenizer rewrites.
        """
        check_model(model, "from_chat")
        return cls(**vars(fields_of_chat(items, model)))

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any], model: PromptModel) -> Prompts:
        """Take whatever the model's own processor or tokenizer made.

        Text is taken apart by its attention mask, whichever side was padded, and batched anew. Anything with pixels or
        explicit positions is kept as it is and run as one batch. For an encoder-decoder these are ``input_ids``,
        ``input_features``, ``input_values`` or ``pixel_values``, with ``decoder_input_ids`` (or ``labels``) for its
        decoder; frames of audio have the role ``audio``.

        Raises:
            PromptError: no token ids, a row of padding only, a mask of another shape, placeholders without images.
        """
        check_model(model, "from_inputs")
        return cls(**vars(fields_of_inputs(inputs, model)))

    @classmethod
    def from_pairs(cls, pairs: Sequence[Any], model: PromptModel) -> Prompts:
        """Take pairs (source, target) for an encoder-decoder: what the encoder reads, and what the decoder reads.

        A target text is read as in training: the model's start token first, the last token (end of sequence) left
        off. Instead of a text, either may be a list of token ids, which is taken as it is; a target then begins with
        the start token.

        Args:
            pairs: one (source, target) per prompt.
            model: a ``sinkscope.models.handle.Model`` of an encoder-decoder whose encoder reads text.

        Raises:
            PromptError: not such a model, no tokenizer, something that is no pair, an empty text, ids outside the
                vocabulary.
        """
        check_model(model, "from_pairs")
        return cls(**vars(fields_of_pairs(pairs, model)))

    def crop(self, boxes: Sequence[Sequence[float] | None], model: PromptModel, *, beside: bool = True) -> Prompts:
        """Return the prompts with a part of their first picture, as a second picture beside the whole one.

        Args:
            boxes: left, top, right, bottom in pixels of the original picture, one per prompt; None leaves a prompt as
                it is.
            model: the model that the prompts are for.
            beside: False puts the part in the place of the whole picture, as it is done for a vision encoder anyway.

        Raises:
            PromptError: the prompts were not made by ``from_chat`` or ``from_images``, a box holds no pixel, or not one
                box per prompt.
        """
        check_model(model, "crop")
        return Prompts(**vars(fields_of_crops(self, boxes, model, beside)))

    def seen_by(self, tower: torch.nn.Module | CountKeys | str | None, model: PromptModel) -> Prompts:
        """Return what one tower of ``model`` reads of these prompts.

        That is the prompts themselves for the model's default tower (``None``), and one prompt for each picture (an
        image, or one of its tiles) for a vision tower inside the model. ``origin`` then says where each picture is
        from: ``source_prompt``, ``source_image``, ``source_tile`` (0 is the whole image). A name (``"encoder"``,
        ``"decoder"``, ``"cross"``) gives the side of pairs that this tower of an encoder-decoder reads. A function that
        counts the keys of inputs gives what cross-attention to images reads: their features are the keys.

        Raises:
            PromptError: the prompts hold no images, or no targets.
        """
        if tower is None:
            return self
        if isinstance(tower, str):
            side = fields_of_side(self, tower)
        elif isinstance(tower, torch.nn.Module):
            side = fields_of_tiles(self, model) if takes_tiles(tower) else fields_of_tower(self, model, tower)
        else:
            side = fields_of_crossing(self, model, tower)
        return self if side is self else Prompts(**vars(side))

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Collate the prompts at ``indices``: padded on the right, with a mask where there is padding.

        Raises:
            PromptError: an index is out of range, no such device, or the further inputs of these prompts do not fit in
                one batch.
        """
        try:
            device = torch.device(device)
        except (RuntimeError, TypeError, ValueError):
            raise PromptError(f"batch(device={shown(device)}): there is no such device. Use 'cpu' or 'cuda'.") from None
        return collate(self, self.check_indices(indices), device)
