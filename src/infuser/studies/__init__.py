"""Studies: the loops that put the parts together, each from one frozen record of settings to a run folder."""
