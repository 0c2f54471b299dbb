"""Two models side by side: what is paired, what the figures are worth, and the page that says so. Pure functions."""
