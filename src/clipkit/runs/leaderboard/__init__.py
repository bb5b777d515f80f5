"""Every run below a folder in one table (`clipkit.leaderboard`)."""
