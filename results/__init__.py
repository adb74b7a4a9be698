"""Runs, tables and pictures, and the scripts that make them."""
