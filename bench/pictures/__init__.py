"""Pictures of what an encoder looks at, what it finds alike, and what a method's views are."""
