"""Pages that people look at: the report of a run. The leaderboard's page has the same look."""
