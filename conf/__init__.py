"""The configuration tree: one folder per group, one YAML file per choice."""
