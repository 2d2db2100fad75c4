"""The web page over a results folder."""
