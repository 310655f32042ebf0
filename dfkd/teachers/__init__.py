"""How teachers are trained. Their weights and cards are in `dfkd.artifacts`."""
