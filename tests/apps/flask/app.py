import os

import psycopg2.extensions
from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    parts = psycopg2.extensions.parse_dsn(os.environ.get("DATABASE_URL", "postgres://somebody@db/blog"))
    return f"{parts['dbname']} of {parts['user']}\n"
