"""What differs between kinds of data: a package per modality, in it a module per stage (`corpora.NAME.modality`)."""
