"""Tools that test the project from outside: damaged inputs, faults, a report in a browser."""
