// undici through a proxy. PROXY, CA, METHOD, BODY and URLS from the environment; a line of answer for each URL.
'use strict';
const { readFileSync } = require('node:fs');
const { ProxyAgent, request } = require('undici');

async function main() {
  const { PROXY, CA, METHOD, BODY, URLS } = process.env;
  const proxy = new URL(PROXY);
  const token = Buffer.from(`${proxy.username}:${proxy.password}`).toString('base64');
  const dispatcher = new ProxyAgent({
    uri: proxy.origin,
    token: `Basic ${token}`,
    requestTls: { ca: readFileSync(CA) },
  });
  for (const url of URLS.split(' ')) {
    try {
      const answer = await request(url, { dispatcher, method: METHOD, body: BODY || undefined });
      const body = Buffer.from(await answer.body.arrayBuffer());
      console.log(answer.statusCode, body.toString('base64'));
    } catch (error) {
      console.log('error', error.message, error.cause ? error.cause.message : '');
    }
  }
  await dispatcher.close();
}

main();
