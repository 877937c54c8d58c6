"""What pods' metrics say of a service's load, from pages of text to windows of a scenario."""
