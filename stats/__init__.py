"""Statistics on arrays and tables: agreement, bootstrap, survival, change over time. Draws nothing."""
