"""Whole experiments: config -> build -> run -> history. Nothing is imported here: configurations load fast."""
