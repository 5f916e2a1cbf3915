// Answers with what a library of the lock file computes, and whether one that only development needs is here.
const fs = require("fs"), http = require("http"), ms = require("ms");
const greeting = "Hello";
http.createServer((_, response) => response.end(`${greeting} ${ms("2 days")} ${fs.existsSync("node_modules/isarray")}`)).listen(process.env.PORT);
