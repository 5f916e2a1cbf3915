import { existsSync } from "fs";
import express, { Request, Response } from "express";

const greeting: string = "Hello from Express";
const app = express();
app.get("/", (_: Request, answer: Response) => {
  answer.send(`${greeting}, compiler here: ${existsSync("node_modules/typescript")}\n`);
});
app.listen(Number(process.env.PORT), "0.0.0.0");
