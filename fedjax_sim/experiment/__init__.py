"""Whole experiments: config -> build -> run -> history. Nothing is imported here, so that a configuration loads fast."""
