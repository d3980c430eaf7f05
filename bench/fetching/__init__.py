"""Fetching a released dataset: its archives downloaded, verified and unpacked, none of which is trusted."""
