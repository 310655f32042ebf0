"""How teachers are trained. Their weights and cards are in `dfkd.artifacts`."""

from dfkd.files import file_digest

__all__ = ["file_digest"]
