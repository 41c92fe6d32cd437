"""Programs that show what the package is for; each folder stands alone."""
