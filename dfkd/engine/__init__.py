"""What every run shares: the data-free loop under mmengine's Runner, the clock, the guard, exact resume."""
