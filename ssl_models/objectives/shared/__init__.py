"""What several pretext tasks are made of: losses, corruption of text, views of pictures, what reviewers are shown."""
