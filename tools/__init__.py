"""Machinery that nobody reads beside the paper: run folders, processes, reports, their tests."""
