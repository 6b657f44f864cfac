"""Whole experiments: config -> build -> run -> history. Nothing is imported here, so that reading a configuration is quick."""
