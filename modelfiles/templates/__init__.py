"""Turns conversations into prompts: Jinja and Go templates, both bounded."""
