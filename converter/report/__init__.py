"""What the user is shown: tables, JSON, HTML, the output folder."""
