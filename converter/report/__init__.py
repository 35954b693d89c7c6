"""Results for the user: tables, JSON, HTML, and the output folder."""
