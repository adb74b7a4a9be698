"""Machinery that nobody reads beside the paper: files, run folders, processes, reports."""
