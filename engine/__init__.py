"""The background process that loads models, samples and trains. No Qt, no database."""
