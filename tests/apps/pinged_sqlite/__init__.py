"""A database backend for Django: SQLite, whose connections can break and are asked whether they have."""
