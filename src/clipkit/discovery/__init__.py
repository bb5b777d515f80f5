"""Pictures of nothing that training showed: noticing them, grouping them, and proposing what they are."""
