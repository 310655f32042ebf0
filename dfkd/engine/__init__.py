"""What every run shares: the data-free loop under mmengine's Runner, harness and worker, the clock, exact resume."""

from dfkd.engine import light

light.install()
