"""Triton device code and launchers for fastae's operators. This version has none yet."""
