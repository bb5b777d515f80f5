"""Sentences from class names."""

__all__ = ["fill_template"]


def fill_template(template: str, class_name: str) -> str:
    """Put a class name into "a photo of a {}." or "This is a photo of the {label}"."""
    return template.replace("{label}", class_name).replace("{}", class_name)
