"""What code decides a result: its digest, by stage and by reader, modality or objective."""
