// A web service: loads its packages, listens, and says READY after it answered a request.
const express = require("express");
const http = require("http");
const _ = require("lodash");
const winston = require("winston");
require("pg");
require("ws");
const Ajv = require("ajv");

const log = winston.createLogger({ transports: [new winston.transports.Console({ silent: true })] });
const check = new Ajv().compile({ type: "object", required: ["name"] });
const app = express();
app.get("/", (request, response) => response.json({ ok: check({ name: _.capitalize("service") }) }));
const server = app.listen(0, "127.0.0.1", () => {
  log.info("listening");
  http.get({ host: "127.0.0.1", port: server.address().port, path: "/" }, (response) => {
    response.resume();
    response.on("end", () => {
      console.log("READY", response.statusCode);
      process.exit(0);
    });
  });
});
