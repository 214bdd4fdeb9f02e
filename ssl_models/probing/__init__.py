"""The linear probe: features of a frozen encoder, the classifier on them, and how sure its numbers are."""
