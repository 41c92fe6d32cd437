"""This runtime and its peers, measured side by side; README.md says how."""
