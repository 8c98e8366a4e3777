import { env } from '$env/dynamic/private';

export function GET({ request, url }) {
	return fetch(env.UPSTREAM + url.pathname + url.search, { headers: request.headers });
}

export function POST({ request, url }) {
	const { method, headers, body } = request;
	return fetch(env.UPSTREAM + url.pathname + url.search, { method, headers, body });
}
