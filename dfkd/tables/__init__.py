"""Tables: what each spans and asks (`definition`), names → one resolved run (`resolve`), the pipeline. Torch-free."""
