"""The model side: takes sealed jobs from the queue and annotates them in batches."""
