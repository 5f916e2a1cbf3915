"""Keeps words in whatever server a config var leads to:  /write/VARIABLE/WORD  and  /read/VARIABLE."""

import contextlib
import http.server
import os
import urllib.parse

import pika
import psycopg2
import pymemcache
import pymysql
import redis


class Table:
    """A table of words in a database that speaks SQL."""

    def __init__(self, connection):
        self.connection = connection

    def __call__(self, statement, *words):
        with contextlib.closing(self.connection), self.connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS words (word VARCHAR(99))")
            cursor.execute(statement, words)
            rows = cursor.fetchall() if cursor.description else []
            self.connection.commit()
            return [row[0] for row in rows]


def postgres(url, word):
    table = Table(psycopg2.connect(url, connect_timeout=3))
    return table("INSERT INTO words VALUES (%s)", word) if word else table("SELECT word FROM words ORDER BY word")


def mysql(url, word):
    parts = urllib.parse.urlsplit(url)
    table = Table(pymysql.connect(host=parts.hostname, port=parts.port, user=parts.username, password=parts.password, database=parts.path[1:], connect_timeout=3))
    return table("INSERT INTO words VALUES (%s)", word) if word else table("SELECT word FROM words ORDER BY word")


def set_of_redis(url, word):
    server = redis.Redis.from_url(url, decode_responses=True, socket_connect_timeout=3)
    return server.sadd("words", word) if word else sorted(server.smembers("words"))


def cache(url, word):
    parts = urllib.parse.urlsplit(url)
    server = pymemcache.Client((parts.hostname, parts.port), connect_timeout=3)
    return server.set("word", word) if word else [(server.get("word") or b"").decode()]


def queue(url, word):
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url + "?socket_timeout=3"))) as connection:
        channel = connection.channel()
        channel.queue_declare("words", durable=True)
        if word:
            return channel.basic_publish("", "words", word, pika.BasicProperties(delivery_mode=2))
        found = []
        while (got := channel.basic_get("words"))[0]:  # not acknowledged: they stay
            found.append(got[2].decode())
        return sorted(found)


KEEPERS = {"postgres": postgres, "mysql": mysql, "redis": set_of_redis, "memcached": cache, "amqp": queue}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, verb, variable, word = [*self.path.split("/"), "", "", ""][:4]
        try:
            url = os.environ[variable] if verb else ""
            found = KEEPERS[url.partition(":")[0]](url, word if verb == "write" else "") if verb else ["up"]
            status, text = 200, "written" if verb == "write" else " ".join(found)
        except Exception as error:
            status, text = 500, f"{type(error).__name__}: {error}"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
