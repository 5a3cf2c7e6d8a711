"""Variations of prompts that need no model, one file each: `vary(text, rng, keep, ...)` returns the text said otherwise."""
