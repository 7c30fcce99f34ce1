"""What a project is and can do: records, store, formats, recipes, runs, protocol. No Qt, no torch."""
