"""What the names of classes say, as vectors: by CLIP's text encoder, or by their letters alone.

Both are side information. CLIP has seen captioned pictures by the hundred million and knows which classes resemble each
other; letters tell classes apart and no more, need no file, and stand for it where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfkd import names
from dfkd.artifacts import given_folders
from dfkd.errors import UserError, reason

ARGUMENT = "text_encoder"  # of a method that uses one
SIZE = 512  # of CLIP ViT-B/32's embedding, and of the letters'


def letters(words: Sequence[str], size: int = SIZE) -> Tensor:
    """N×size, unit rows: the counts of each name's runs of one to four letters, hashed into signed columns.

    Equal on every machine. Names that share letters are near each other, whatever they mean.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=size)
    return torch.from_numpy(counts.transform(words).toarray()).float()


@torch.no_grad()
def clip(texts: Sequence[str], encoder: str) -> Tensor:
    """N×d, CLIP's projected text embeddings, of unit length.

    `encoder` is a path, or a name: the folder `text_<name>` of those that DFKD_WEIGHTS names, as `save_pretrained`
    makes it. Raises UserError where there is no such folder or no text encoder in it.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, logging

    folder = folder_of(encoder)
    logging.disable_progress_bar()  # a run has progress lines of its own
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True).float().eval()
        given = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        found = model(**given).text_embeds
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"{folder} holds no CLIP text encoder ({reason(error)})") from None
    return torch.nn.functional.normalize(found, dim=1)


def asked_for(arguments: Mapping[str, object]) -> Path | None:
    """The folder of the text encoder that a method's arguments name, if they do. Raises UserError."""
    name = arguments.get(ARGUMENT)
    return folder_of(str(name)).resolve() if name else None


def folder_of(encoder: str) -> Path:
    """Where the text encoder of that name or path lies. Raises UserError, saying how to get it."""
    if "/" in encoder:
        folder = names.path(encoder)
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; a text encoder's name has no slash")
        return folder
    names.check_name(encoder, "a text encoder's name")
    for place in given_folders():
        if (place / f"text_{encoder}").is_dir():
            return place / f"text_{encoder}"
    raise UserError(
        f"text encoder {encoder} is in no weights folder; where there is a network, run: hf download openai/{encoder} "
        f"--local-dir text_{encoder}, and put that folder into one that DFKD_WEIGHTS names"
    )
