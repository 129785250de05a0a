"""Triton device code and launchers for fastae's operators; needs torch and triton, and nothing of fastae."""
