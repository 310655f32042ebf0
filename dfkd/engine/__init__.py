"""One run: the harness, which has the data and judges, and the worker, which has the method."""

from dfkd.engine import light

light.install()
