"""Trees and evaluations as text, tables, charts and pages."""
