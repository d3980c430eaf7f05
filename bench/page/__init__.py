"""The report as one page: HTML that works offline, with figures and pictures."""
